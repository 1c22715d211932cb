"""The analyses, one file each, in rooms named after what they make claims about."""
