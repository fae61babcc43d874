// The voxels that a ray visits, slab by slab along its dominant axis.
//
// A ray crosses the slabs of its dominant axis a one after another; within one it moves by at most
// one voxel along each of the others. Coordinates of axes that decrease are mirrored, so all slopes
// are 0 ... 1 in fixed point. Entering slab k at (y, z), the ray visits (y, z), perhaps one voxel in
// between, and the one at which it leaves; all follow from y + k s, without the slabs before.
#pragma once
#include "grid.h"

namespace vox {

struct Ray {
  int axis[3];          // dominant, and the two others
  int64_t from[3], to[3];  // mirrored, in that order
  int64_t slope[3];     // of the two others, per slab; [0] is unused
  int64_t first[3];     // their coordinates at the first slab's end
  bool mirrored[3];
  int slabs;            // slabs before the last one
};

VOX_BOTH Ray make_ray(const Fixed& origin, const Fixed& end) {
  Ray ray;
  int64_t length[3];
  for (int i = 0; i < 3; ++i) {
    const int64_t d = end.v[i] - origin.v[i];
    length[i] = d < 0 ? -d : d;
  }
  int a = length[1] > length[0] ? 1 : 0;
  if (length[2] > length[a]) a = 2;
  ray.axis[0] = a;
  ray.axis[1] = a == 0 ? 1 : 0;
  ray.axis[2] = a == 2 ? 1 : 2;
  for (int i = 0; i < 3; ++i) {
    const int j = ray.axis[i];
    const bool mirrored = end.v[j] < origin.v[j];
    ray.mirrored[i] = mirrored;
    ray.from[i] = mirrored ? kMirror - origin.v[j] : origin.v[j];
    ray.to[i] = mirrored ? kMirror - end.v[j] : end.v[j];
  }
  ray.slabs = int((ray.to[0] >> kFraction) - (ray.from[0] >> kFraction));
  const int64_t rest = kOne - (ray.from[0] & (kOne - 1));
  for (int i = 1; i < 3; ++i) {
    const double share = double(length[ray.axis[i]]) / double(length[a]);
    ray.slope[i] = length[a] ? int64_t(share * double(kOne)) : 0;
    ray.first[i] = ray.from[i] + ((ray.slope[i] * rest) >> kFraction);
  }
  return ray;
}

// Coordinate i (1 or 2) where slab k is entered.
VOX_BOTH int64_t entry(const Ray& ray, int i, int k) {
  return k == 0 ? ray.from[i] : ray.first[i] + (k - 1) * ray.slope[i];
}

// Where it is left.
VOX_BOTH int64_t exit(const Ray& ray, int i, int k) {
  return k == ray.slabs ? ray.to[i] : ray.first[i] + k * ray.slope[i];
}

// Whether axis 1 reaches its next voxel before axis 2 does, from fractions fy and fz. In float32,
// whose one rounding per product is the same everywhere.
VOX_BOTH bool second_first(int32_t fy, int32_t fz, float slope_y, float slope_z) {
  return float(int32_t(kOne) - fy) * slope_z < float(int32_t(kOne) - fz) * slope_y;
}

// The cells, of mirrored axes, in which slab k is entered and left.
struct Crossing {
  int64_t in[3], out[3];
  bool y_first;
};

VOX_BOTH Crossing crossing(const Ray& ray, int k) {
  Crossing at;
  at.in[0] = at.out[0] = (ray.from[0] >> kFraction) + k;
  int64_t fixed[3];
  for (int i = 1; i < 3; ++i) {
    fixed[i] = entry(ray, i, k);
    at.in[i] = fixed[i] >> kFraction, at.out[i] = exit(ray, i, k) >> kFraction;
  }
  at.y_first = second_first(int32_t(fixed[1] & (kOne - 1)), int32_t(fixed[2] & (kOne - 1)), float(ray.slope[1]),
                            float(ray.slope[2]));
  return at;
}

// The code of a voxel of a ray, given by its mirrored coordinates.
VOX_BOTH uint64_t unmirrored(const Ray& ray, int64_t x, int64_t y, int64_t z) {
  const int64_t mirrored[3] = {x, y, z};
  uint64_t code = 0;
  for (int i = 0; i < 3; ++i)
    code |= spread(uint64_t(ray.mirrored[i] ? (kMirror >> kFraction) - mirrored[i] : mirrored[i])) << ray.axis[i];
  return code;
}

// Call visit(code) for the voxels of slab k, in order.
template <class Visit>
VOX_BOTH void visit_slab(const Ray& ray, int k, const Visit& visit) {
  const Crossing at = crossing(ray, k);
  visit(unmirrored(ray, at.in[0], at.in[1], at.in[2]));
  if (at.in[1] == at.out[1] && at.in[2] == at.out[2]) return;
  if (at.in[1] != at.out[1] && at.in[2] != at.out[2])
    visit(unmirrored(ray, at.in[0], at.y_first ? at.out[1] : at.in[1], at.y_first ? at.in[2] : at.out[2]));
  visit(unmirrored(ray, at.in[0], at.out[1], at.out[2]));
}

// Call visit(code) for the voxels of all slabs, in order: additions to fixed-point and to dilated
// coordinates, which are those of crossing().
template <class Visit>
VOX_BOTH void visit_ray(const Ray& ray, const Visit& visit) {
  visit_slab(ray, 0, visit);
  if (ray.slabs > 1) {
    constexpr uint64_t all = 0x0049249249249249ull;  // the bits of axis 0 in a code of 57
    const uint64_t mask[3] = {all << ray.axis[0], all << ray.axis[1], all << ray.axis[2]};
    uint64_t flip = 0, at[3];
    int64_t fixed[3];
    for (int i = 0; i < 3; ++i) {
      flip |= ray.mirrored[i] ? mask[i] : 0;
      fixed[i] = i ? ray.first[i] : ray.from[0] + kOne;
      at[i] = spread(uint64_t(fixed[i] >> kFraction)) << ray.axis[i];
    }
    constexpr uint32_t below = uint32_t(kOne) - 1;
    uint32_t y = uint32_t(fixed[1]) & below, z = uint32_t(fixed[2]) & below;
    const uint32_t sy = uint32_t(ray.slope[1]), sz = uint32_t(ray.slope[2]);
    const float fsy = float(sy), fsz = float(sz);
    for (int k = 1; k < ray.slabs; ++k) {
      visit((at[0] | at[1] | at[2]) ^ flip);
      const uint32_t y_end = y + sy, z_end = z + sz;
      const bool y_out = y_end > below, z_out = z_end > below;
      const bool y_first = second_first(int32_t(y), int32_t(z), fsy, fsz);
      const uint64_t y_next = (at[1] - mask[1]) & mask[1], z_next = (at[2] - mask[2]) & mask[2];
      if (y_out && z_out) visit((at[0] | (y_first ? y_next : at[1]) | (y_first ? at[2] : z_next)) ^ flip);
      at[1] = y_out ? y_next : at[1], at[2] = z_out ? z_next : at[2];
      if (y_out || z_out) visit((at[0] | at[1] | at[2]) ^ flip);
      at[0] = (at[0] - mask[0]) & mask[0];
      y = y_end & below, z = z_end & below;
    }
  }
  if (ray.slabs) visit_slab(ray, ray.slabs, visit);
}

}  // namespace vox
