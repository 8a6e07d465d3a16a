"""Check, compact and info of a store whose segments are objects of a bucket. Needs the packages of
`[cluster]`."""
