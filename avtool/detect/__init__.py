"""From what a localizer says about windows of segments to the events of a file."""
