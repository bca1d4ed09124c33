"""What travels between Limbeck and a server: requests, replies, and the three dialects they are put in.

score.py      a validated reply, and everything an answer can have wrong with it
sample.py     a validated sampled turn
sglang.py     /generate                    JSON
vllm.py       /v1/completions              JSON
binary.py     /limbeck/score               msgpack, ours: exact floats, hidden states, a digest
dialects.py   how each kind of server is asked, over the pooled client
http.py       a pooled client: bounded, retrying, with replicas
"""
