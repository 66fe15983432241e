"""What both ends of a socket agree on: errors, names, codecs. Pure, standard library only, also installed in guests."""
