"""The web page's own files; api/web.py serves them."""
