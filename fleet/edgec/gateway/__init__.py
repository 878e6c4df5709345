"""The gateway: models on a machine with room, for devices that cannot answer themselves.

    from edgec.gateway import Gateway, GatewayOptions

    with Gateway(["digits.edgec"], GatewayOptions(keys={"dev1": b"a-key-of-16-chars"})) as gateway:
        print(gateway.url)

It is `edgec.serving` behind identities and rates, and passes what it does not serve itself to any other
server of the Open Inference Protocol. ``edgec gateway up`` does the same. It needs the extra ``gateway``.
"""

from edgec.gateway._gateway import Gateway
from edgec.gateway._identities import read_identities
from edgec.gateway._options import FollowOptions, GatewayOptions
from edgec.gateway._ray import RayGateway, RayOptions

__all__ = ["FollowOptions", "Gateway", "GatewayOptions", "RayGateway", "RayOptions", "read_identities"]
