"""A virtual device under offered load: tables of cost, traces of requests, servers, measures."""
