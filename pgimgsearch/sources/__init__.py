"""Where images come from: folders, lists, object stores and shards, and how files are read and decoded."""
