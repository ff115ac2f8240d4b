"""A real job, live in a page: a worker indexes a folder of documents and tells how it goes."""
