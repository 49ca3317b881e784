"""Where shards are made: in this process, in several on this machine, or on a cluster."""
