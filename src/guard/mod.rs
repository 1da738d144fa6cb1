//! Guards: which rows feed which keys.
