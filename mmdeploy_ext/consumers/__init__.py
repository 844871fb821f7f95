"""Programs that load our files, without these programs: names and checks of files, loops in numpy."""
