// see Documentation/decisions/0001-the-map.md
