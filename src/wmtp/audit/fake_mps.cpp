// What PyTorch asks of a device before it computes there, answered as an Apple GPU would, and
// nothing else: no kernels, no memory. With it tensors of FakeTensorMode can be on "mps" on any
// machine, and the real autograd engine runs over them. See pretend.py.
#include <ATen/detail/MPSHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto kMPS = c10::DeviceType::MPS;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kMPS> {
  c10::Device getDevice() const override { return {kMPS, 0}; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, {kMPS, 0});
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
};

}  // namespace

namespace at {

struct MPSHooks final : MPSHooksInterface {
  explicit MPSHooks(MPSHooksArgs) {}
  MPSHooks() = default;
  void init() const override {}
  bool hasMPS() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  bool isOnMacOSorNewer(unsigned, unsigned) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void deviceSynchronize() const override {}
  void emptyCache() const override {}
};

C10_REGISTER_CLASS(MPSHooksRegistry, MPSHooks, MPSHooks)
C10_REGISTER_GUARD_IMPL(MPS, Guard)

}  // namespace at
