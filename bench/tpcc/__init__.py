"""TPC-C: the rows that it begins with, the transactions that its terminals ask for, and both again in PL/pgSQL."""
