"""Pages for a browser: one file of HTML without a network, its style, script and charts."""
