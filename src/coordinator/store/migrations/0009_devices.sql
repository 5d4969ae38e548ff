-- The node that stands before one that speaks nothing but WireGuard; nothing for all others.
ALTER TABLE nodes ADD COLUMN gateway INTEGER;
