"""Several workers that train one network: their start, their messages, and their common end."""
