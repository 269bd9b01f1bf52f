"""From a run folder to pages, tables and figures; imports neither torch nor numpy."""
