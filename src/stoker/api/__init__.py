"""The waist of the hourglass: requests, events, endpoints, errors. Standard library only."""
