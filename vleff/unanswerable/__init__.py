"""Unanswerable questions, written from answerable ones and their paragraphs (arXiv 1906.06045)."""
