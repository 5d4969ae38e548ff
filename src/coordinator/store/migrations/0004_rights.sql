-- Whether a node's key was ended by its own machine, and whether a key lets nodes in again whose key was ended.
ALTER TABLE nodes ADD COLUMN logged_out INTEGER NOT NULL DEFAULT 0;
ALTER TABLE auth_keys ADD COLUMN readmits INTEGER NOT NULL DEFAULT 0;
