-- Whether the operator's word made an identity a user's, so that it needs no rule of its provider.
ALTER TABLE identities ADD COLUMN invited INTEGER NOT NULL DEFAULT 0;
