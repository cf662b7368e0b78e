"""The demonstration: two hosts, data of every kind between them on a good wire and on a bad one, every byte verified."""
