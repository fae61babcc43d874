// A depth image, and the voxels that it looks through.
#pragma once
#include <cmath>

#include "grid.h"

namespace vox {

// Images of one camera. Filled in by Python; its twin is compiled.Sight.
struct Sight {
  const float* depth;   // [count, height, width], metres
  const double* pose;   // [count, 4, 4], camera to world
  int64_t count, width, height;
  double fx, fy, cx, cy;

  VOX_BOTH Sight one(int64_t i) const {
    return {depth + i * width * height, pose + i * 16, 1, width, height, fx, fy, cx, cy};
  }

  // The point in the world, in metres, of a pixel that shows depth z; NaN where that is no number
  // above 0.
  VOX_BOTH static void point(const double* pose_of_image, double u_slope, double v_slope, double z, float to[3]) {
    const double x = u_slope * z, y = v_slope * z;
    for (int j = 0; j < 3; ++j) {
      const double* row = pose_of_image + 4 * j;
      const double at = row[0] * x + row[1] * y + row[2] * z + row[3];
      to[j] = z > 0 ? float(at) : NAN;
    }
  }
  VOX_BOTH double u_slope(int64_t u) const { return (double(u) - cx) / fx; }
  VOX_BOTH double v_slope(int64_t v) const { return (double(v) - cy) / fy; }
};

// The part of a block's voxels in the camera's coordinates: those of voxel (x, y, z) are
// (along[0][.][x] + along[1][.][y]) + along[2][.][z], in the order in which the reference adds.
struct Facing {
  double along[3][3][8];  // by axis; right, down, forward; coordinate
  double square[3][8];    // of the distance to the camera's centre
};

VOX_BOTH void face(const Sight& sight, const int64_t block[3], double voxel_size, Facing& to) {
  for (int i = 0; i < 3; ++i)
    for (int c = 0; c < 8; ++c) {
      const double apart = (double(8 * block[i] + c - kBias) + 0.5) * voxel_size - sight.pose[4 * i + 3];
      for (int j = 0; j < 3; ++j) to.along[i][j][c] = sight.pose[4 * i + j] * apart;
      to.square[i][c] = apart * apart;
    }
}

// Whether the camera looks through the voxels (x, y, 0 ... 7) of a block: their centres are within
// range, project to a pixel, and lie half a voxel or more before what it shows. Without branches, so
// that compilers make lanes of it.
VOX_BOTH void seen_through(const Sight& sight, const Facing& at, int x, int y, double voxel_size, double max_range,
                           uint8_t free[8]) {
  int64_t pixel[8];
  double forward[8];
  const double square = max_range * max_range, width = double(sight.width), height = double(sight.height);
  for (int z = 0; z < 8; ++z) {
    forward[z] = at.along[0][2][x] + at.along[1][2][y] + at.along[2][2][z];
    const double right = at.along[0][0][x] + at.along[1][0][y] + at.along[2][0][z];
    const double down = at.along[0][1][x] + at.along[1][1][y] + at.along[2][1][z];
    const double u = floor(right / forward[z] * sight.fx + sight.cx + 0.5);
    const double v = floor(down / forward[z] * sight.fy + sight.cy + 0.5);
    const bool inside = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (forward[z] > 0);
    const bool within = at.square[0][x] + at.square[1][y] + at.square[2][z] <= square;
    pixel[z] = inside ? int64_t(v) * sight.width + int64_t(u) : 0;
    free[z] = inside & within;
  }
  for (int z = 0; z < 8; ++z) {
    const double shown = double(sight.depth[pixel[z]]);
    free[z] &= (forward[z] + voxel_size / 2 <= shown) & (shown <= 3.5e38);  // which is less than infinity
  }
}

// Whether any voxel of a block can be seen: false only where the ball around it lies outside the
// view, beyond range, or beyond the farthest depth.
VOX_BOTH bool in_view(const Sight& sight, const int64_t block[3], double voxel_size, double reach,
                      double farthest) {
  double at[3] = {0, 0, 0}, square = 0;
  for (int i = 0; i < 3; ++i) {
    const double apart = double(8 * block[i] - kBias + 4) * voxel_size - sight.pose[4 * i + 3];
    for (int j = 0; j < 3; ++j) at[j] += sight.pose[4 * i + j] * apart;
    square += apart * apart;
  }
  const double radius = 6.95 * voxel_size;  // 4 sqrt(3), and what poses may be off from rigid
  if (at[2] < -radius || at[2] > farthest + radius || square > (reach + radius) * (reach + radius)) return false;
  const double focal[2] = {sight.fx, sight.fy};
  const double least[2] = {-0.5 - sight.cx, -0.5 - sight.cy};
  const double most[2] = {double(sight.width) - 0.5 - sight.cx, double(sight.height) - 0.5 - sight.cy};
  for (int j = 0; j < 2; ++j) {
    const double x = focal[j] * at[j], f = fabs(focal[j]);
    const double low = x - least[j] * at[2], high = most[j] * at[2] - x;
    if (low < -radius * (f + fabs(least[j])) || high < -radius * (f + fabs(most[j]))) return false;
  }
  return true;
}

}  // namespace vox
