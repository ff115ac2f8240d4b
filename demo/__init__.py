"""A real job, live in a page: a worker indexes a folder of documents and tells how it goes.

It also asks for a person's word, by messages that want an acknowledgement. Each comes again until
somebody has answered in a page; the worker gets a receipt then, and tells all pages."""
