"""Answers of other libraries to inputs that cause errors in practice: small cases whose right answer is arithmetic."""
