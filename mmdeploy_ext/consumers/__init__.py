"""Programs that load our files, without them: what their files have to be, and their loops in numpy."""
