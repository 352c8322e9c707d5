import tvm


@tvm.transform.module_pass(opt_level=0, name="Dispatch")
class Dispatch:
    def __init__(self, cpu, on):
        pass

    def transform_module(self, module, _c):
        return module
