"""The demonstration: data of every kind between two hosts, on a good wire and a bad one, every byte verified."""
