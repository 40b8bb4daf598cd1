"""Weight sources for libraries whose trainers keep weights under other names, in other orders, or wrapped."""
