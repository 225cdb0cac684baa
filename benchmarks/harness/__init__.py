"""From a declared table to recorded cells, a page and plots.

``table`` declares, ``recipes`` reads, ``plan`` lists the cells, ``schedule`` runs them in worker
processes through ``cells``, ``store`` keeps their records, ``summary`` averages them, ``render``
and ``plots`` show them, and ``reproduce`` puts these together.
"""
