"""What people marked on slides: read from QuPath, ASAP and ImageScope, and turned into labels."""
