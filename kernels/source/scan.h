// What becomes of the points of a scan, on every device.
#pragma once
#include "grid.h"

namespace vox {

enum Mode { kEndpoint = 0, kRayPerVoxel = 1, kRayPerPoint = 2, kProjective = 3 };

VOX_BOTH uint64_t code_of(const Fixed& at) {
  return morton(uint64_t(at.v[0] >> kFraction), uint64_t(at.v[1] >> kFraction), uint64_t(at.v[2] >> kFraction));
}

// Fixed-point coordinates of a place in metres; false where it lies off the grid.
VOX_BOTH bool fix(const double at[3], double inverse, Fixed& fixed) {
  for (int j = 0; j < 3; ++j) {
    const double x = at[j] * inverse;
    if (!on_grid(x)) return false;
    fixed.v[j] = to_fixed(x);
  }
  return true;
}

// Bring a point that is beyond range back to it; return whether it was within.
VOX_BOTH bool shorten(const double origin[3], double range, double at[3]) {
  const double x = at[0] - origin[0], y = at[1] - origin[1], z = at[2] - origin[2];
  const double square = x * x + y * y + z * z;
  if (square <= range * range) return true;
  const double share = range / std::sqrt(square);
  for (int j = 0; j < 3; ++j) at[j] = origin[j] + (at[j] - origin[j]) * share;
  return false;
}

}  // namespace vox
