r"""Messages between the parameter server and its clients: `class_centers.proto`, and what protoc makes of it.

Made with the oldest protobuf that pyproject.toml allows, since newer ones read its code and not the reverse:

  python -m venv /tmp/protoc && /tmp/protoc/bin/pip install grpcio-tools==1.74.0 protobuf==6.31.1
  /tmp/protoc/bin/python -m grpc_tools.protoc -I src --python_out=src \
      src/towers/classcenters/protocol/class_centers.proto
"""
