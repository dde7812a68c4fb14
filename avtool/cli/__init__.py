"""The command line; importing it loads neither torch nor av."""
