"""What others give for inputs that go wrong in practice: small cases whose right answer is arithmetic, put to every library there is."""
