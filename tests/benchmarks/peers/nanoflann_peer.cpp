// nanoflann behind a C ABI.
#include <cstdint>
#include <nanoflann.hpp>

namespace {

struct Points {
  const double* data;
  size_t count;
  size_t kdtree_get_point_count() const { return count; }
  double kdtree_get_pt(size_t i, size_t axis) const { return data[3 * i + axis]; }
  template <class Box>
  bool kdtree_get_bbox(Box&) const {
    return false;
  }
};

using Tree = nanoflann::KDTreeSingleIndexAdaptor<nanoflann::L2_Simple_Adaptor<double, Points>, Points, 3>;

struct Index {
  Points points;
  Tree tree;
  Index(const double* data, size_t count)
      : points{data, count}, tree(3, points, nanoflann::KDTreeSingleIndexAdaptorParams(10)) {
    tree.buildIndex();
  }
};

}  // namespace

extern "C" {

void* flann_new(const double* points, int64_t count) { return new Index(points, size_t(count)); }
void flann_delete(void* index) { delete static_cast<Index*>(index); }

// Squared distances of the k nearest, [count, k].
void flann_nearest(const void* index, const double* queries, int64_t count, int64_t k, double* squares,
                   uint32_t* indices) {
  const Tree& tree = static_cast<const Index*>(index)->tree;
  for (int64_t i = 0; i < count; ++i)
    tree.knnSearch(queries + 3 * i, size_t(k), indices + i * k, squares + i * k);
}

}  // extern "C"
