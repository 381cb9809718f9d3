"""Answers of other libraries to inputs that go wrong in practice: small cases whose right answer is arithmetic."""
