"""What travels between Limbeck and a scoring server: questions, answers, and the three dialects they are put in.

question.py   a question, a validated reply, and everything an answer can have wrong with it
sglang.py     /generate                    JSON
vllm.py       /v1/completions              JSON
binary.py     /limbeck/score               msgpack, ours: exact floats, hidden states, a digest
http.py       a pooled client: bounded, retrying, with replicas
"""
