"""`make drift`: what the newest versions of the packages break, and which package it is."""
