"""Real clients of the protocol, in environments of their own: run as programs, with the server's URL."""

from __future__ import annotations

TRITON = """
import sys
import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

url, key = sys.argv[1], {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
client = http.InferenceServerClient(url.removeprefix("http://"))
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
assert client.is_model_ready("tiny", "1") and not client.is_model_ready("nothing")
assert client.get_server_metadata()["extensions"]
assert client.get_model_metadata("tiny")["inputs"][0]["datatype"] == "FP32"
assert client.get_model_repository_index()[0]["name"] == "tiny"
results = []
for sent in (True, False):
    for got in (True, False):
        for coding in (None, "gzip", "deflate"):
            x = http.InferInput("x", [2, 4], "FP32")
            x.set_data_from_numpy(key["x"], binary_data=sent)
            y = http.InferRequestedOutput("y", binary_data=got)
            result = client.infer(
                "tiny", [x], outputs=[y], request_id="7", timeout=1000000, priority=1,
                request_compression_algorithm=coding, response_compression_algorithm=coding,
            )
            assert result.get_response()["id"] == "7"
            results.append(result.as_numpy("y"))
x = http.InferInput("x", [2, 4], "FP32")
x.set_data_from_numpy(key["x"])
results.append(client.infer("tiny", [x]).as_numpy("y"))
results.append(client.async_infer("tiny", [x]).get_result().as_numpy("y"))
assert all(r.shape == (2, 3) and np.allclose(r, results[0]) for r in results)
sample = http.InferInput("sample", [1], "BYTES")
sample.set_data_from_numpy(np.array([b"[1, 2, 3, 4]"], dtype=object))
for got in (True, False):
    wanted = [http.InferRequestedOutput("prediction", binary_data=got)]
    print(client.infer("tiny.predict", [sample], outputs=wanted).as_numpy("prediction")[0])
try:
    unknown = http.InferInput("nothing", [1], "FP32")
    client.infer("tiny", [unknown.set_data_from_numpy(np.zeros(1, np.float32))])
except InferenceServerException as e:
    print(e)
else:
    raise AssertionError("an unknown input was taken")
client.load_model("tiny")
client.unload_model("tiny")
assert not client.is_model_ready("tiny")
client.load_model("tiny")
assert client.is_model_ready("tiny")
print("done")
"""

KSERVE = """
import asyncio
import sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def main(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=1, timeout=30))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "tiny")
    values, answers = np.arange(8, dtype=np.float32).reshape(2, 4), []
    for binary in (True, False):
        x = InferInput("x", [2, 4], "FP32")
        x.set_data_from_numpy(values, binary_data=binary)
        request = InferRequest(model_name="tiny", infer_inputs=[x], request_id="7")
        response = await client.infer(url, request, model_name="tiny")
        assert response.id == "7" and response.model_name == "tiny"
        answers.append(response.outputs[0].as_numpy())
    from kserve.protocol.infer_type import RequestedOutput
    x = InferInput("x", [2, 4], "FP32")
    x.set_data_from_numpy(values, binary_data=True)
    request = InferRequest(
        model_name="tiny", infer_inputs=[x], request_outputs=[RequestedOutput("y", {"binary_data": True})]
    )
    answers.append((await client.infer(url, request, model_name="tiny")).outputs[0].as_numpy())
    assert all(a.shape == (2, 3) and np.allclose(a, answers[0]) for a in answers)
    print("done")

asyncio.run(main(sys.argv[1]))
"""
