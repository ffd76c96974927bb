"""What differs between the databases of the SQL store: `port` says what a dialect must do, each other file is one database."""
