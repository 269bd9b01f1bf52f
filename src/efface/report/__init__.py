"""Reports: pages, tables and figures from the files of a run; imports neither torch nor numpy."""
