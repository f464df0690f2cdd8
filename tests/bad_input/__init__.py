"""A catalogue of wrong, huge and hostile values, and what each is given to."""
