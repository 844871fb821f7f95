"""What all rooms use: errors, files, the words of commands; configs and the modules of users."""
