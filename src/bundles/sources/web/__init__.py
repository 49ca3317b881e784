"""Files on the web: in pieces, resumed, hashed while they come."""
