"""Between models and the database: models are loaded, checked and stored; vectors go in and out."""
