"""Run a model from the middle: what is below a boundary is stood in for, what is above runs as it is.

``record``: what one real call did on its way to the boundary. ``template``: what each module on that way
returns, as far as it does not depend on what is skipped. ``play``: a call with stand-ins. ``batch``: which
stored items a call is about.
"""
