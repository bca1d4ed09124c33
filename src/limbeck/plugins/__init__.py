"""Drop-ins for other trainers: their hooks, our contract."""
