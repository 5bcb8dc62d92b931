"""Values and small tools that import nothing from other packages here."""
