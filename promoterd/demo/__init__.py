"""The demonstration: a counted, slow lower layer, a software share, and an application that searches it."""
